"""The content-addressed store and the shards in it. Source only: nothing generated lands here."""
