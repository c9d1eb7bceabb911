//! Packed products with AVX2 and FMA: eight outputs to a vector.
