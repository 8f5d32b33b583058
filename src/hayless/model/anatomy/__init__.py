"""The rows of a ledger bound to a loaded model: which module does what, by role.

    anatomy = Anatomy.of(model)
    for site in anatomy.weights(BLOCK_LINEARS):
        w = anatomy.matrix(site)                # (out, in), whatever the layout; (experts, out, in) of a stack
        anatomy.write_matrix(site, w.round())
        q, k, v = split_qkv(anatomy.dims, w)    # where site.row.role is Role.QKV

The families' own files are in `hayless.core.families`: what differs between them is data there, and code only here.
"""

from __future__ import annotations

from hayless.model.anatomy.binding import Anatomy, Site, dims_of_model
from hayless.model.anatomy.fused import join_qkv, split_qkv

__all__ = ["Anatomy", "Site", "dims_of_model", "join_qkv", "split_qkv"]
