(* What differs between compilers' libraries: OCaml 5.3. *)

open Typedtree

let desc = Types.get_desc
let type_id = Types.get_id
let is_abstract = function Types.Type_abstract _ -> true | _ -> false

let bound_names pattern =
  List.map (fun (id, _, ty, _) -> (id, ty)) (pat_bound_idents_full pattern)

let load_path (cmt : Cmt_format.cmt_infos) =
  cmt.cmt_loadpath.visible @ cmt.cmt_loadpath.hidden

let init_load_path folders =
  Load_path.init ~auto_include:Load_path.no_auto_include ~visible:folders ~hidden:[]

(* Only since 5.1 does `include struct ... end` keep a field for each of its names. *)
let plain_include_has_slots = true

let applied = function
  | Tmod_apply ({ mod_desc = Tmod_ident (path, _); _ }, _, _)
  | Tmod_apply_unit { mod_desc = Tmod_ident (path, _); _ } -> Some path
  | _ -> None

let is_applied = function Tmod_apply _ | Tmod_apply_unit _ -> true | _ -> false

(* `fun a b -> ...` as written. *)
let arity expression =
  match expression.exp_desc with
  | Texp_function (parameters, Tfunction_body _) -> List.length parameters
  | Texp_function (parameters, Tfunction_cases _) -> List.length parameters + 1
  | _ -> 0
