# SPDX-License-Identifier: GPL-3.0-or-later
"""Take everything of ours away again: pyinfra inventory.py undeploy.py [--data remove_state=yes]

Packages stay: others may use them by now.
"""

from home_forwarder.plan import Plan
from operations.host import can_deploy, switch_is_on
from operations.system import leave_nginx_service_disabled, remove_state, switch_units

nothing = Plan()

if can_deploy(nothing):
    leave_nginx_service_disabled()
    switch_units(name="Stop and delete everything", plan=nothing)
    if switch_is_on("remove_state"):
        remove_state(name="Delete the known addresses and waiting messages")
