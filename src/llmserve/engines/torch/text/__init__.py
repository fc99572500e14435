"""From text to token ids, and from token ids to text as it comes."""
