# SPDX-License-Identifier: GPL-3.0-or-later
"""The VPSes. Each is a host name or address, or a pair of that and settings of its own.

ssh_user         who logs in: "root" (the default here), or a user who may use sudo
ssh_key          the private key, if it is not one that ssh finds by itself
ssh_port         where sshd listens, 22 if not said
_sudo            True if ssh_user is not root
_sudo_password   if sudo asks for one and you do not want to be asked
ssh_password     if there is no key

Every key of group_data/all.py can stand here as well: it then replaces that key for this one VPS.
"""

vps = [
    ("vps.example.net", {"ssh_user": "root"}),
]
