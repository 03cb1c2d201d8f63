"""How good captions and pictures are; each score with its definition."""
