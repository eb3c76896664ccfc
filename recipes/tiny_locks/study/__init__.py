"""Is DRA better than an entropy bonus at equal accuracy, and can diversity raise pass@1? Arms, locks, runs, results."""
