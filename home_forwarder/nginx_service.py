# SPDX-License-Identifier: GPL-3.0-or-later
"""nginx.service, the distribution's web server, comes with the nginx that relays are made of.

It is not ours. Where nginx was there before us, nothing is done to its service. Where it was not, its
package would start it on port 80, at once and at each boot: while the package is being installed, a
drop-in keeps it from starting; afterwards it is disabled, once, and the drop-in taken away. The
drop-in tells a later run that this one was cut off in between. An admin may enable the service any
time after; no deploy touches it again.
"""

from __future__ import annotations

PACKAGE = "nginx"
UNITS = "/etc/systemd/system"
DROP_IN = f"{UNITS}/nginx.service.d/home-forwarder.conf"
"""There only while the package is being installed. One of OWNED_FILES in home_forwarder/plan.py."""

HOLD = rf"""[ -e /usr/sbin/nginx ] || {{
mkdir -p {UNITS}/nginx.service.d &&
printf '%s\n' '# Until a deploy of home-forwarder has installed nginx for its relays.' \
    '[Unit]' 'ConditionPathExists=!/' >{DROP_IN} &&
systemctl daemon-reload; }}"""
"""Shell: keep nginx.service from starting, unless nginx is there already."""

RELEASE = f"""[ ! -e {DROP_IN} ] || {{
{{ [ ! -e /usr/sbin/nginx ] || systemctl -q disable nginx.service; }} &&
rm {DROP_IN} &&
rmdir --ignore-fail-on-non-empty {UNITS}/nginx.service.d &&
systemctl daemon-reload; }}"""
"""Shell: after HOLD, leave nginx.service disabled and as its package has it; else do nothing."""
