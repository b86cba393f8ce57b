"""What the node's own process is made of."""

import subprocess
import sys


def test_the_node_itself_never_imports_torch() -> None:
    script = (
        "import sys, node.app, node.cli\n"
        "from node.backends.build import build_backends\n"
        "from node.config import NodeConfig\n"
        "build_backends(NodeConfig())\n"
        "print(sorted({'torch', 'transformers', 'tokenizers', 'safetensors'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=50, check=True)
    assert result.stdout.strip() == "[]"
