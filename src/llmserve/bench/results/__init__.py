"""What was measured: records, reports, intervals."""
