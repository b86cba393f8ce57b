"""What can run models for a node; and, for Python programs, the backends of this process by name.

    from node.backends import register_backend, select_backend_for_task, get_backend_status_report

The three are those of `backends`, the one manager of the process: programs of older systems expect functions.
"""

from __future__ import annotations

from node.backends.manager import BackendCapabilities, BackendManager, RegisteredBackend

backends = BackendManager()
register_backend = backends.register_backend
unregister_backend = backends.unregister_backend
select_backend_for_task = backends.select_backend_for_task
get_backend_status_report = backends.get_backend_status_report

__all__ = [
    "BackendCapabilities",
    "BackendManager",
    "RegisteredBackend",
    "backends",
    "get_backend_status_report",
    "register_backend",
    "select_backend_for_task",
    "unregister_backend",
]
