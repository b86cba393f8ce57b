"""Use the mesh from Python: `MeshClient`, and the older names `LibP2PInferenceNode` and `PeerCapability`."""

from mesh.client.answer import Answer, AnswerStream, Embeddings
from mesh.client.asking import Patience
from mesh.client.blocking import BlockingMeshClient
from mesh.client.client import MeshClient, MeshNode
from mesh.client.inference_node import LibP2PInferenceNode, PeerCapability

__all__ = [
    "Answer",
    "AnswerStream",
    "BlockingMeshClient",
    "Embeddings",
    "LibP2PInferenceNode",
    "MeshClient",
    "MeshNode",
    "Patience",
    "PeerCapability",
]
