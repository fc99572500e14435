"""Load and its report: `workload` says what comes when, `driver` sends it, `report` tells."""
