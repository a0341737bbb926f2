type _ Effect.t += Yield : int -> unit Effect.t

let label = Sys.opaque_identity "old"

let run name =
  let steps = ref 0 in
  for n = 1 to 3 do
    Effect.perform (Yield n);
    steps := !steps + n
  done;
  Printf.sprintf "%s %s %d" label name !steps
