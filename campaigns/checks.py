"""System checks of the CAMPAIGNS settings: campaigns.E001 and on."""
