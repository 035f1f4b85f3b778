#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-3.0-or-later
"""Print the user-data of one host: python cloud_init.py HOST"""

import sys

from operations.new_vps import main

if __name__ == "__main__":
    sys.exit(main())
