"""Every state in which a crash can leave the disk: lives are recorded call by call, and judged at each one."""
