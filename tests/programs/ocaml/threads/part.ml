let taken = ref 0
let version () = 1

let step n =
  incr taken;
  n + 1

let steps () = !taken
