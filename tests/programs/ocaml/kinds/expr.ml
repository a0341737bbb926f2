(* A GADT and its evaluator. *)
type _ t =
  | Int : int -> int t
  | Bool : bool -> bool t
  | Add : int t * int t -> int t
  | If : bool t * 'a t * 'a t -> 'a t

let rec eval : type a. a t -> a = function
  | Int n -> n
  | Bool b -> b
  | Add (a, b) -> eval a + eval b
  | If (c, a, b) -> if eval c then eval a else eval b
