"""What an answer is flagged with, on its way from a deploy to the client."""

from __future__ import annotations

import msgspec

from edgeshard.schemas.common import Activation


class Remarks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why an answer's tokens may be others than those of the same request elsewhere, or alone.

    Attributes:
        is_mixed: stages differ in provider, target, precision or ONNX Runtime version, and so in
            rounding.
        links: how hidden states travel from each stage to the next; only fp32 loses nothing.
        depends_on_company: a device computes a row of several otherwise than one alone, and
            requests share steps; see `Plan.company`.
    """

    is_mixed: bool = False
    links: tuple[Activation, ...] = ()
    depends_on_company: bool = False
