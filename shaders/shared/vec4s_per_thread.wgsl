// How many times 4 outputs a thread of the products with few rows has (src/ops/few_rows.rs).
#ifdef VEC4S4
const VEC4S: u32 = 4u;
#else
#ifdef VEC4S2
const VEC4S: u32 = 2u;
#else
const VEC4S: u32 = 1u;
#endif
#endif
