"""The benchmark suite behind tools/bench.

    main      command line, rounds, JSON            machine   where it runs: cores, kernel, commit
    rows      what is measured, with its goals      servers   what is measured: ours, the floors, peers
    judge     medians, pairs, A/A, tables           scale     many shards, many load processes
"""
