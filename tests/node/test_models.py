import subprocess
import sys

from node.models import DEMO_MODEL_ID, demo_model_path


def test_the_demo_model_is_where_it_is_said_to_be():
    assert demo_model_path().name == DEMO_MODEL_ID
    assert (demo_model_path() / "config.json").is_file()


def test_finding_it_does_not_import_torch():
    script = "import sys, node.models; node.models.demo_model_path(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
