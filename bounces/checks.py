"""System checks of the BOUNCES settings: bounces.E001 and on."""
