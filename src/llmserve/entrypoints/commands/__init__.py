"""What magics and command line share: one parser, one meaning."""
