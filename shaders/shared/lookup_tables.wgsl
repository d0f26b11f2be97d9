// Ternary products by looking sums up: of three bits of weights that multiply the same codes, every sum is one of eight, and
// eight neighbouring lanes hold them. A shuffle by the bits of each output's weights gives the sum for it: two
// instructions for three columns. A sum is a number of 32 bits, of one row's codes or of two rows' at once. Only where
// subgroups have at least 8 lanes, and lanes that follow each other in a workgroup do so in a subgroup.
// A lane has VEC4S times 4 outputs: 16 where NUMBERS is 1, 8 where it is 2 or 4. Written out: where an index is not a
// constant, a CPU keeps arrays in memory, one word per lane.

const LANES: u32 = TILE_LANES / VEC4S;

var<private> lane0: u32; // the first of this lane's eight in the subgroup
var<private> lane_number: u32; // among the eight
var<private> lane_bits: vec3<u32>; // all ones for each bit of this lane's number that is set
var<private> bytes: array<vec4<u32>, 4u * NUMBERS>; // codes 0, 1, 2 and 3 of this lane's four words
var<private> word: array<vec4<u32>, VEC4S>;
var<private> found: array<vec4<u32>, VEC4S * NUMBERS>; // sums over stored codes

fn begin_tables(in_subgroup: u32) {
    lane_number = in_subgroup & 7u;
    lane0 = in_subgroup - lane_number;
    lane_bits = vec3<u32>() - ((vec3<u32>(lane_number) >> vec3<u32>(0u, 1u, 2u)) & vec3<u32>(1u));
}

// Byte b of each word with its sign.
fn signed_byte(x: vec4<u32>, b: u32) -> vec4<u32> {
    return bitcast<vec4<u32>>(bitcast<vec4<i32>>(x << vec4<u32>(24u - 8u * b)) >> vec4<u32>(24u));
}

// The code that bit `p` of a word of 1-bit weights multiplies; its eight words of codes lie in `lane` and the next one.
fn one(number: u32, p: u32, lane: u32) -> u32 {
    return subgroupShuffle(bytes[4u * number + p / 8u][p % 4u], lane + p % 8u / 4u);
}

// The same of 2-bit weights, times 2 for a code's upper bit; its four words of codes lie in `lane`.
fn two(number: u32, p: u32, lane: u32) -> u32 {
    return subgroupShuffle(bytes[4u * number + p / 8u][p % 8u / 2u], lane) << (p % 2u);
}

fn of_lanes(sum: u32, at: vec4<u32>) -> vec4<u32> {
    return vec4<u32>(subgroupShuffle(sum, at.x), subgroupShuffle(sum, at.y), subgroupShuffle(sum, at.z),
        subgroupShuffle(sum, at.w));
}

// Adds what the bits of each output's word at `p` choose from the sums of the eight lanes.
fn look_up(q: u32, sums: vec4<u32>, p: u32, mask: u32) {
    let at = ((word[q] >> vec4<u32>(p)) & vec4<u32>(mask)) | vec4<u32>(lane0);
    found[q] += of_lanes(sums.x, at);
    if NUMBERS > 1u { found[VEC4S + q] += of_lanes(sums.y, at); }
    if NUMBERS > 2u {
        found[2u * VEC4S % (VEC4S * NUMBERS) + q] += of_lanes(sums.z, at);
        found[3u * VEC4S % (VEC4S * NUMBERS) + q] += of_lanes(sums.w, at);
    }
}

fn look_up_all(sums: vec4<u32>, p: u32, mask: u32) {
    look_up(0u, sums, p, mask);
    look_up(1u, sums, p, mask);
    if VEC4S > 2u {
        look_up(2u, sums, p, mask);
        look_up(3u, sums, p, mask);
    }
}

fn sum_ones(number: u32, p: u32, lane: u32) -> u32 {
    let bits = lane_bits & vec3<u32>(one(number, p, lane), one(number, p + 1u, lane), one(number, p + 2u, lane));
    return bits.x + bits.y + bits.z;
}

fn sum_twos(number: u32, p: u32, lane: u32) -> u32 {
    let bits = lane_bits & vec3<u32>(two(number, p, lane), two(number, p + 1u, lane), two(number, p + 2u, lane));
    return bits.x + bits.y + bits.z;
}

fn three_ones(p: u32, lane: u32) {
    look_up_all(vec4<u32>(sum_ones(0u, p, lane), sum_ones(1u % NUMBERS, p, lane), sum_ones(2u % NUMBERS, p, lane),
        sum_ones(NUMBERS - 1u, p, lane)), p, 7u);
}

fn three_twos(p: u32, lane: u32) {
    look_up_all(vec4<u32>(sum_twos(0u, p, lane), sum_twos(1u % NUMBERS, p, lane), sum_twos(2u % NUMBERS, p, lane),
        sum_twos(NUMBERS - 1u, p, lane)), p, 7u);
}

// The last two bits of a word.
fn last_ones(number: u32, lane: u32) -> u32 {
    let bits = lane_bits.xy & vec2<u32>(one(number, 30u, lane), one(number, 31u, lane));
    return bits.x + bits.y;
}

fn last_twos(number: u32, lane: u32) -> u32 {
    let bits = lane_bits.xy & vec2<u32>(two(number, 30u, lane), two(number, 31u, lane));
    return bits.x + bits.y;
}

// 32 columns of 1-bit weights.
fn add_ones(lane: u32) {
    three_ones(0u, lane);
    three_ones(3u, lane);
    three_ones(6u, lane);
    three_ones(9u, lane);
    three_ones(12u, lane);
    three_ones(15u, lane);
    three_ones(18u, lane);
    three_ones(21u, lane);
    three_ones(24u, lane);
    three_ones(27u, lane);
    look_up_all(vec4<u32>(last_ones(0u, lane), last_ones(1u % NUMBERS, lane), last_ones(2u % NUMBERS, lane),
        last_ones(NUMBERS - 1u, lane)), 30u, 3u);
}

// 16 columns of 2-bit weights.
fn add_twos(lane: u32) {
    three_twos(0u, lane);
    three_twos(3u, lane);
    three_twos(6u, lane);
    three_twos(9u, lane);
    three_twos(12u, lane);
    three_twos(15u, lane);
    three_twos(18u, lane);
    three_twos(21u, lane);
    three_twos(24u, lane);
    three_twos(27u, lane);
    look_up_all(vec4<u32>(last_twos(0u, lane), last_twos(1u % NUMBERS, lane), last_twos(2u % NUMBERS, lane),
        last_twos(NUMBERS - 1u, lane)), 30u, 3u);
}

fn take_words(at: u32) {
    word[0] = weights[at];
    word[1] = weights[at + 1u];
    if VEC4S > 2u {
        word[2u % VEC4S] = weights[at + 2u];
        word[3u % VEC4S] = weights[at + 3u];
    }
}

// Adds up to 128 columns from vec4 `first` of the codes on, which the lanes hold one each;
// `base` is the lane's first vec4 of weights.
fn add_columns(bits: u32, base: u32, first: u32) {
    let words = row_words(bits);
    if bits == 1u {
        let end = min(first / 2u + 4u, words);
        for (var j = first / 2u; j < end; j++) {
            take_words(base + j * TILE_LANES);
            add_ones(lane0 + 2u * j - first);
        }
    } else {
        let end = min(first + 8u, words);
        for (var j = first; j < end; j++) {
            take_words(base + j * TILE_LANES);
            add_twos(lane0 + j - first);
        }
    }
}

// vec4s of a row's codes.
fn code_vec4s() -> u32 {
    return (weights[0].y + 31u) / 32u * 2u;
}

// A lane's first vec4 of weights of a tile.
fn first_words(part: Part, tile: u32, lane: u32) -> u32 {
    return part.first + tile * row_words(part.bits) * TILE_LANES + lane * VEC4S;
}
