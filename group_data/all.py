# SPDX-License-Identifier: GPL-3.0-or-later
"""What the VPSes forward. A host of inventory.py can have its own value of any key.

Names that begin with _ are yours; any other name that is not explained here is an error.
"""

# The homes. Each has an INDEX in the names of its units: its position in this list (0, 1, ...), or what
# it says. When a home that does not say it moves up or down, the connections of its forwards end.
#   name           short, for this file: a-z, 0-9, - and _
#   hostname       its DNS name (kept up to date by the router or a DynDNS client), or an IPv6 address
#   description    for people, in logs and mails; the name if left out
#   allow_private  True: accept a private (ULA, fc00::/7) address; False if left out
#   index          its INDEX, 0 to 999, so that taking away or adding another home does not move it; the
#                  position if left out
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
#   max_connections  at the same time, or UDP peers; 1024 if left out. One more waits with socat, and
#                    is turned away at once with nginx
#   max_per_client   of these, how many for one client address (of IPv6: for one /64), with nginx; a quarter
#                    if left out, none if that is below 64. A UDP peer holds its place for idle_timeout, also
#                    one that the home never answered: so four such clients silence a forward
#   relay            "socat" or "nginx", the program that forwards; TCP socat, UDP nginx if left out. UDP
#                    by socat is for one client at a time: of several that begin at the same moment some
#                    get another's answer, or none; and on a VPS with several addresses of a family its
#                    answers come from the one that routing picks, not from the one that was asked
#   proxy_protocol   True, with nginx and TCP: the home is told the client's address, by a line before
#                    all else that its server must expect (PROXY protocol); False if left out
forwards = [
    {"home": "fritzbox", "protocol": "tcp", "port": 44444},
    {"home": "nas", "protocol": "udp", "port": 33333},
]

# Who is told when an address changes, and how: mails, a webhook, a program, or several of them; nobody
# if left out. docs/notifications.md has examples. A key ending in _file names a file of mode 600 on the
# machine that you deploy from, with a secret as its only line. On the VPS only root can read it.
#   mail_to    a local user or an address, several with commas between
#   mail_from  the sender's address; root@ and the VPS's name if left out
#   smtp       the server that takes the mails; the VPS's own one if left out
#       host           "localhost" if left out
#       security       "starttls" (if left out), "tls", or "none" (if left out for localhost)
#       port           587 with starttls, 465 with tls, 25 with none if left out
#       user, password_file   the login, if the server wants one
#   sendmail   True: hand the mails to /usr/sbin/sendmail, without a server; False if left out
#   webhook    a server that gets a POST of JSON for each message
#       url            or, for one that is secret, url_file
#       preset         "json" (if left out), "ntfy" or "gotify"
#       token_file     the token, if the server wants one
#   program    the path of a program of your own on the VPS, run with HOME_EVENT and its like set
# notify = {"mail_to": "root"}

# Seconds between two look-ups of the homes.
check_interval = 60

# Seconds without a good answer until a home is reported as unresolved.
unresolved_after = 1800

# What cloud_init.py adds at the first boot of a new VPS; a deploy does not read it.
#   operator          a user for pyinfra, who may use sudo and has no password; none if left out
#   ssh_keys          public keys of who may log in as the operator, or as root if there is none
#   security_updates  True: the VPS installs security updates by itself; False if left out
#   hostname          what the VPS calls itself; the provider's choice if left out
#   timezone          such as "Europe/Berlin"; the image's, mostly UTC, if left out
# first_boot = {"operator": "operator", "ssh_keys": ["ssh-ed25519 AAAA... me@laptop"]}

# False: do not look the homes up from here before a deploy.
preflight = True

# False: do not try from the VPS, after a deploy, whether the homes answer.
reach = True
