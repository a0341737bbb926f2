(* Functors: an argument, a functor, and a set made of both. *)
module type RANK = sig
  type t

  val rank : t -> int
end

module Word = struct
  type t = string

  let rank word = String.length word
  let compare a b = compare (rank a, a) (rank b, b)
end

module Words = Set.Make (Word)

module Best (R : RANK) = struct
  let of_list items = List.fold_left (fun best item -> max best (R.rank item)) 0 items
end
