# SPDX-License-Identifier: BSD-3-Clause
"""Starts and stops real SPDK programs for tests, the demo and benchmarks."""

from .process import HostIO, SpdkProcess, options_for_memory, program
from .rpc import RpcClient, RpcError
from .target import DmTarget, Drive, free_port
from .tools import thin_check, thin_dump

__all__ = ['DmTarget', 'Drive', 'HostIO', 'RpcClient', 'RpcError', 'SpdkProcess', 'free_port',
           'options_for_memory', 'program', 'thin_check', 'thin_dump']
