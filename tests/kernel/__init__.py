# SPDX-License-Identifier: BSD-3-Clause
"""A real Linux kernel as judge of what is on disks: boots, runs a shell script, powers off."""

from .machine import Kernel, KernelError, Outcome

__all__ = ['Kernel', 'KernelError', 'Outcome']
