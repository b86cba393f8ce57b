import pytest

from node.models import demo_model_path
from node.worker.demo.evaluate import Demo


@pytest.fixture(scope="session")
def demo():
    return Demo(demo_model_path())
