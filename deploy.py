# SPDX-License-Identifier: GPL-3.0-or-later
"""Make every VPS forward as declared: pyinfra inventory.py deploy.py"""

from home_forwarder.plan import make_plan
from operations.facts import before
from operations.host import can_deploy, checked_config
from operations.preflight import warn_about_names, warn_about_relays
from operations.system import install_packages, switch_units, write_files

config = checked_config()
plan = make_plan(config)

if can_deploy(plan):
    if config.preflight:
        warn_about_names(config, before().own_addresses)
    warn_about_relays(config)
    install_packages("Install the packages", plan.packages)
    write_files(name="Write the files", plan=plan)
    switch_units(name="Switch the units", plan=plan)
