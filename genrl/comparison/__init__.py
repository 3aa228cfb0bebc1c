"""``genrl evaluate``: several models on the same prompts and seeds, and whether what differs is more than noise."""
