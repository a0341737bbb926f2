(* What differs between compilers' libraries: OCaml 4.13. *)

open Typedtree

let desc ty = (Ctype.repr ty).Types.desc
let type_id ty = (Ctype.repr ty).Types.id
let is_abstract = function Types.Type_abstract -> true | _ -> false

let bound_names pattern =
  List.map (fun (id, _, ty) -> (id, ty)) (pat_bound_idents_full pattern)

let load_path (cmt : Cmt_format.cmt_infos) = cmt.cmt_loadpath
let init_load_path folders = Load_path.init folders

(* Only since 5.1 does `include struct ... end` keep a field for each of its names. *)
let plain_include_has_slots = false

let applied = function
  | Tmod_apply ({ mod_desc = Tmod_ident (path, _); _ }, _, _) -> Some path
  | _ -> None

let is_applied = function Tmod_apply _ -> true | _ -> false

(* `fun a -> fun b -> ...` as written; a match in the middle ends the run. *)
let rec arity expression =
  match expression.exp_desc with
  | Texp_function { cases = [ { c_guard = None; c_rhs; _ } ]; _ } -> 1 + arity c_rhs
  | Texp_function _ -> 1
  | _ -> 0
