# SPDX-License-Identifier: GPL-3.0-or-later
"""What the VPSes forward. A host of inventory.py can have its own value of any key.

Names that begin with _ are yours; any other name that is not explained here is an error.
"""

# The homes. The position in this list is the INDEX in unit names: 0, 1, ...
#   name           short, for this file: a-z, 0-9, - and _
#   hostname       its DNS name (kept up to date by the router or a DynDNS client), or an IPv6 address
#   description    for people, in logs and mails; the name if left out
#   allow_private  True: accept a private (ULA, fc00::/7) address; False if left out
homes = [
    {"name": "fritzbox", "hostname": "fritzbox.example.net", "description": "Fritz!Box at home"},
    {"name": "nas", "hostname": "nas.example.net", "description": "Home server"},
]

# The forwards.
#   home             the name of a home above
#   protocol         "tcp" or "udp"
#   port             on the VPS: a number, or a range such as "8000-8010"
#   target_port      at home, of a range the first; the same as port if left out
#   listen           "46" IPv4 and IPv6 (if left out), "4" or "6" one of them
#   idle_timeout     seconds without traffic until a connection ends; TCP 7440, UDP 300 if left out
#   max_connections  at the same time, or UDP peers; 1024 if left out
forwards = [
    {"home": "fritzbox", "protocol": "tcp", "port": 44444},
    {"home": "nas", "protocol": "udp", "port": 33333},
]

# Who gets a mail when an address changes, through the VPS's own mail server. Leave out for none.
# notify = {"mail_to": "root"}

# Seconds between two look-ups of the homes.
check_interval = 60

# Seconds without a good answer until a home is reported as unresolved.
unresolved_after = 1800

# False: do not look the homes up from here before a deploy.
preflight = True
