"""What a reader may use beside the file: a folder for unpacked parts, the password, and a place to report to."""

from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Context:
    """`name` is what the document is called, `scratch` a folder that goes away with the import.

    `done_bytes` of `total_bytes` were read so far; `facts` holds lists to choose from, such as sheets or speakers.
    """

    name: str
    scratch: Path
    password: str = ""
    done_bytes: int = 0
    total_bytes: int = 0
    facts: dict[str, list[str]] = field(default_factory=dict)
