// The entry point of ternary products for blocks of 8 rows (ops/ternary_matmul.rs): a workgroup is 32 lanes times SPLIT_K shares of
// the columns, which are added at the end. Grid: x = tiles of 128 outputs, y = blocks. Imported where `add_share` is declared: it
// adds the columns of a thread's share of a tile to `sums`.
#import ternary_blocks

const SPLIT_K: u32 = 4u;

var<workgroup> shares: array<vec4<i32>, SPLIT_K * SPLIT_K * TILE_LANES>;

// A tile of a matrix of those from `first` on.
fn tile_products(id: u32, block: u32, first: u32, tile: Tile) {
    let lane = id % TILE_LANES;
    let share = id / TILE_LANES;
    let part = part_at(first + tile.part);
    sums = array<vec4<i32>, ROWS>();
    add_share(id, block, tile, part);
    let in_part = (tile.tile * TILE_LANES + lane) * 4u;
    for (var r0 = 0u; r0 < ROWS; r0 += SPLIT_K) {
        workgroupBarrier();
        for (var r = 0u; r < SPLIT_K; r++) { shares[(share * SPLIT_K + r) * TILE_LANES + lane] = sums[r0 + r]; }
        workgroupBarrier();
        var sum = vec4<i32>();
        for (var s = 0u; s < SPLIT_K; s++) { sum += shares[(s * SPLIT_K + share) * TILE_LANES + lane]; }
        finish(block, r0 + share, r0 / SPLIT_K, sum, tile, part, in_part);
    }
}

@compute @workgroup_size(TILE_LANES, SPLIT_K)
fn main(@builtin(local_invocation_index) id: u32, @builtin(workgroup_id) group: vec3<u32>) {
    let block = group.y;
    let first = first_matrix(block);
    if first == NO_ROW { return; }
    let tile = find_tile(first, group.x);
    tile_products(id, block, first, tile);
#ifdef GATED
    tile_products(id, block, first, Tile(1u, tile.tile, tile.out));
#endif
}
