(* Functions written in C, one of them without any allocation. *)
external twice : int -> int = "kinds_twice"
external greeting : string -> string = "kinds_greeting"
external root : (float[@unboxed]) -> (float[@unboxed]) = "kinds_root_byte" "kinds_root" [@@noalloc]

let greet name = greeting name
let both n = twice n + int_of_float (root (float_of_int n))
