"""EdgeShard: one language model over the unequal devices that people already own."""
