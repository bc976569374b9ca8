"""How dates and times are written: 24 hours everywhere, as in the logs and on our own pages."""
