"""What `bench_server` measures with: programs in C, servers to compare with, and the cases."""
