# SPDX-License-Identifier: BSD-3-Clause
"""A soak: a pool on a drive, hosts on its thin devices, and everything that can happen to them."""
