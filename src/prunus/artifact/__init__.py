"""A compressed network on disk: saved as JSON and safetensors, loaded by its own constructor, exported."""

from prunus.artifact.export import export
from prunus.artifact.manifest import Manifest, read_manifest
from prunus.artifact.store import Artifact, is_whole, load, load_artifact, require_source, save
from prunus.artifact.verify import verify_export

__all__ = [
    "Artifact",
    "Manifest",
    "export",
    "is_whole",
    "load",
    "load_artifact",
    "read_manifest",
    "require_source",
    "save",
    "verify_export",
]
