(* What holds on to functions of Counter: each in a way that an assignment to its module block
   does not reach, and two that it does. *)

module type STEP = sig
  val bump : int -> int
end

module Twice (S : STEP) = struct
  let run n = S.bump n + S.bump n
end

module Of_counter = Twice (Counter)

module Wider = struct
  include Counter

  let bump_more n = bump (n + 1000)
end

let alias = Counter.bump
let in_table : (string, int -> int) Hashtbl.t = Hashtbl.create 4
let partial = Counter.add 5
let eta n = Counter.bump n
let packed = (module Counter : STEP)
let () = Hashtbl.replace in_table "bump" Counter.bump

let through_module n =
  let module S = (val packed) in
  S.bump n
