// Sums and maxima over a workgroup of THREADS threads, at least FEW; every thread gets the result.
// Imported where THREADS is declared.
#import bounds

const FEW: u32 = 8u;

var<workgroup> partial: array<f32, THREADS>;

fn sum_all(id: u32, v: f32) -> f32 {
    workgroupBarrier();
    partial[id] = v;
    workgroupBarrier();
    if id < FEW {
        var sum = 0.0;
        for (var i = id; i < THREADS; i += FEW) { sum += partial[i]; }
        partial[id] = sum;
    }
    workgroupBarrier();
    var sum = 0.0;
    for (var i = 0u; i < FEW; i++) { sum += partial[i]; }
    return sum;
}

// The largest of magnitudes, NaN above all.
fn max_all(id: u32, v: f32) -> f32 {
    workgroupBarrier();
    partial[id] = v;
    workgroupBarrier();
    if id < FEW {
        var max_order = magnitude(partial[id]);
        for (var i = id; i < THREADS; i += FEW) { max_order = max(max_order, magnitude(partial[i])); }
        partial[id] = of_order(max_order);
    }
    workgroupBarrier();
    var max_order = magnitude(partial[0]);
    for (var i = 1u; i < FEW; i++) { max_order = max(max_order, magnitude(partial[i])); }
    return of_order(max_order);
}
