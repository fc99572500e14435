"""From logits to tokens: sampling, penalties, guided decoding."""
