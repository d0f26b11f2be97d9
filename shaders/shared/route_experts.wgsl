// The router of a row, computed by every workgroup of a chosen expert (ops/route_swiglu.rs).
// Imported where `shares` of a vec4<i32> for each of THREADS threads are declared.
#import bit_linear_codes
#import choose_experts

const MAX_ROUTED: u32 = 64u;

var<workgroup> logits: array<f32, MAX_ROUTED>;

// Where the norm in front, the router and its bias begin behind the norms of the matrices, two of each expert.
fn pre_norm_at() -> u32 {
    return 2u * (params.experts + params.slots - params.k) * (params.width / 4u);
}

// Sums over the threads of a workgroup.
fn sum4_all(id: u32, v: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    shares[id] = bitcast<vec4<i32>>(v);
    workgroupBarrier();
    if id < FEW {
        var sum = vec4<f32>();
        for (var i = id; i < THREADS; i += FEW) { sum += bitcast<vec4<f32>>(shares[i]); }
        shares[id] = bitcast<vec4<i32>>(sum);
    }
    workgroupBarrier();
    var sum = vec4<f32>();
    for (var i = 0u; i < FEW; i++) { sum += bitcast<vec4<f32>>(shares[i]); }
    return sum;
}

// The logits of the row that begins at `at`, of four experts in a pass over it.
fn find_logits(id: u32, at: u32, pre_norm_rms: f32) {
    let quarter = params.width / 4u;
    let router = pre_norm_at() + quarter;
    let bias = router + params.experts * quarter;
    for (var e = 0u; e < params.experts; e += 4u) {
        var sums = vec4<f32>();
        for (var i = id; i < quarter; i += THREADS) {
            let v = pre_normed(x[at + i], i, pre_norm_rms);
            let w = router + e * quarter + i;
            sums += vec4<f32>(dot(v, norms[w]), dot(v, norms[w + quarter]), dot(v, norms[w + 2u * quarter]),
                dot(v, norms[w + 3u * quarter]));
        }
        let four = sum4_all(id, sums) + norms[bias + e / 4u];
        if id < 4u { logits[e + id] = component(four, id); }
    }
    workgroupBarrier();
}

// The expert of a slot: every thread goes through the order of choice up to it.
fn chosen(slot: u32) -> u32 {
    var last = 0u;
    for (var i = 0u; i <= slot; i++) { last = best_behind(0u, i > 0u, last); }
    return last;
}
