# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux kernel as judge of what is on disks: boots, runs a shell script, powers off."""

from .machine import Kernel, KernelError, Outcome, number_of

__all__ = ['number_of', 'Kernel', 'KernelError', 'Outcome']
