"""`make demo`: a campaign to 2,000 readers through a real SMTP server, on this machine alone.

Nothing here is known to the product. The demo starts the product's own processes (web server,
task cluster) beside an SMTP server that behaves like the world, uses the product as a person
would (import a file, write a campaign, send it), and then compares the product's ledger with the
SMTP server's own log, letter by letter.
"""
