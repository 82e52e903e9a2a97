# A package of its own: kronfluence, a peer of the benchmarks, installs a package of this name beside itself.
