// Codes × ternary matrices for many rows, where a dot product of bytes is one instruction (ops/ternary_matmul.rs): a lane keeps 4
// outputs of 8 rows, so that a block of 32 columns of the weights is unpacked once for 8 rows. Codes go through workgroup memory.
#bind var<storage, read> codes: array<vec4<u32>>; // [rows, sets, set_words / 4]
#import ternary_shares
#import byte_dots

const RUN: u32 = 8u; // blocks of 32 columns that go through workgroup memory together

// What the rows have for 32 columns. One computed place for all of it: each is checked against the end of its array.
struct Block {
    codes: array<array<vec4<u32>, 2>, ROWS>,
}

var<workgroup> run: array<Block, RUN>;

var<private> sums: array<vec4<i32>, ROWS>; // over stored codes

// Loads the codes of all rows for blocks of columns from `first` on; those behind the last one are not read.
fn load(id: u32, block: u32, matrix: u32, first: u32) {
    let vectors = params.set_words / 4u;
    for (var nth = 0u; nth < 2u * ROWS * RUN / (TILE_LANES * SPLIT_K); nth++) {
        let i = id + nth * TILE_LANES * SPLIT_K;
        let r = i / (2u * RUN);
        let v = i % (2u * RUN);
        let which = set_of(row_at(block, r), matrix);
        run[v / 2u].codes[r][v % 2u] = codes[which * vectors + min(2u * first + v, vectors - 1u)];
    }
}

// Adds block `b` of columns, which is number `nth` of those in workgroup memory.
fn add_block(at: u32, b: u32, nth: u32, words: u32, bits: u32) {
    let left = half_of(at, b, 0u, words, bits);
    let right = half_of(at, b, 1u, words, bits);
    for (var r = 0u; r < ROWS; r++) {
        sums[r] += sum_of(left, run[nth].codes[r][0]) + sum_of(right, run[nth].codes[r][1]);
    }
}

// Adds the columns of a thread's share of a tile: every SPLIT_K-th block of 32.
fn add_share(id: u32, block: u32, tile: Tile, part: Part) {
    let words = row_words(part.bits);
    let at = part.first + tile.tile * words * TILE_LANES + id % TILE_LANES;
    let blocks = (weights[0].y + 31u) / 32u;
    for (var b0 = 0u; b0 < blocks; b0 += RUN) {
        workgroupBarrier();
        load(id, block, tile.part, b0);
        workgroupBarrier();
        for (var b = b0 + id / TILE_LANES; b < min(b0 + RUN, blocks); b += SPLIT_K) {
            add_block(at, b, b - b0, words, part.bits);
        }
    }
}
