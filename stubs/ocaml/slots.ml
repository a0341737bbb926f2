(* Which field of a unit's block holds what. The compiler without flambda gives a field to every
   ident of the toplevel: first those of the interface, in its order, each being the last one of
   its name; then the others in the order of the source; then those inside of `module M =
   struct`, `open struct` and `include (struct ... end : S)`, from the outside in. *)

open Typedtree

type namespace = Value | Constructor | Module | Class

type slot = {
  path : string list;
  chain : int list;
  exported : bool;
  namespace : namespace;
  id : Ident.t;  (* of the structure, or of the interface where that has no own one *)
  ty : Types.type_expr option;  (* of a value that only a signature tells of *)
  item : Types.signature_item option;  (* of the interface *)
}

let toplevel item =
  let all namespace ids = List.map (fun id -> (namespace, id)) ids in
  match item.str_desc with
  | Tstr_value (_, bindings) -> all Value (let_bound_idents bindings)
  | Tstr_typext e -> all Constructor (List.map (fun c -> c.ext_id) e.tyext_constructors)
  | Tstr_exception e -> all Constructor [ e.tyexn_constructor.ext_id ]
  | Tstr_module { mb_id = Some id; mb_presence = Types.Mp_present; _ } -> all Module [ id ]
  | Tstr_recmodule ms -> all Module (List.filter_map (fun m -> m.mb_id) ms)
  | Tstr_class classes -> all Class (List.map (fun (c, _) -> c.ci_id_class) classes)
  | Tstr_open { open_bound_items = items; _ } | Tstr_include { incl_type = items; _ } ->
      let bound = Types.bound_value_identifiers items in
      let namespace id =
        let is = function
          | Types.Sig_value (other, _, _) when Ident.same id other -> Some Value
          | Sig_typext (other, _, _, _) when Ident.same id other -> Some Constructor
          | Sig_module (other, _, _, _, _) when Ident.same id other -> Some Module
          | Sig_class (other, _, _, _) when Ident.same id other -> Some Class
          | _ -> None
        in
        Option.value (List.find_map is items) ~default:Value
      in
      List.map (fun id -> (namespace id, id)) bound
  | _ -> []

let is_plain_include m = match m.mod_desc with Tmod_structure _ -> true | _ -> false

(* The idents inside of an item, each with the modules around it. *)
let rec inside item =
  match item.str_desc with
  | Tstr_open { open_expr = { mod_desc = Tmod_structure s; _ }; _ } -> within s
  | Tstr_include { incl_mod = m; _ }
    when Compat.plain_include_has_slots || not (is_plain_include m) -> (
      match one_constraint m with Some s -> within s | None -> [])
  | Tstr_module { mb_presence = Types.Mp_present; mb_expr; mb_id; _ } -> (
      let name = match mb_id with Some id -> Ident.name id | None -> "_" in
      match one_constraint mb_expr with
      | Some s -> List.map (fun (path, n, id) -> (name :: path, n, id)) (within s)
      | None -> [])
  | _ -> []

and within s =
  let both item =
    match item.str_desc with
    | Tstr_module { mb_id = None; _ } -> []  (* only the toplevel's own `_` has fields *)
    | _ -> List.map (fun (n, id) -> ([], n, id)) (toplevel item) @ inside item
  in
  List.concat_map both s.str_items

(* The compiler looks through one constraint, no further. *)
and one_constraint m =
  match m.mod_desc with
  | Tmod_structure s | Tmod_constraint ({ mod_desc = Tmod_structure s; _ }, _, _, _) -> Some s
  | _ -> None

(* The items of a signature that exist at run time, in order. *)
let runtime_items items =
  List.filter_map
    (fun item ->
      match item with
      | Types.Sig_value (_, { val_kind = Types.Val_prim _; _ }, _) -> None
      | Sig_value (id, d, _) -> Some (Value, id, Some d.val_type, item)
      | Sig_typext (id, _, _, _) -> Some (Constructor, id, None, item)
      | Sig_module (id, Types.Mp_present, _, _, _) -> Some (Module, id, None, item)
      | Sig_class (id, _, _, _) -> Some (Class, id, None, item)
      | _ -> None)
    items

let hidden (path, namespace, id) =
  { path = path @ [ Ident.name id ]; chain = []; exported = false; namespace; id; ty = None;
    item = None }

let exported id ty namespace item =
  { path = [ Ident.name id ]; chain = []; exported = true; namespace; id; ty; item = Some item }

let numbered slots = List.mapi (fun place s -> { s with chain = [ place ] }) slots

(* The fields of a unit that has both an interface and a structure. *)
let of_unit interface structure =
  let defined = List.concat_map toplevel structure.str_items in
  let last = Hashtbl.create 97 in
  List.iter (fun (n, id) -> Hashtbl.replace last (n, Ident.name id) id) defined;
  let taken = Hashtbl.create 97 in
  let first =
    List.map
      (fun (n, id, ty, item) ->
        match Hashtbl.find_opt last (n, Ident.name id) with
        | Some own ->
            Hashtbl.replace taken own ();
            exported own None n item
        | None -> exported id ty n item)
      (runtime_items interface)
  in
  let is_free (_, id) = not (Hashtbl.mem taken id) in
  let rest = List.map (fun (n, id) -> hidden ([], n, id)) (List.filter is_free defined) in
  let nested = List.map hidden (List.concat_map inside structure.str_items) in
  numbered (first @ rest @ nested)

(* The places in the block of a module that a functor made. *)
let rec of_result owned (above : slot) =
  match Hashtbl.find_opt owned.Owned.results above.id with
  | Some items when above.namespace = Module ->
      List.concat
        (List.mapi
           (fun place (namespace, id, ty, _) ->
             let path = above.path @ [ Ident.name id ] in
             let chain = above.chain @ [ place ] in
             let s = { above with path; chain; namespace; id; ty; item = None } in
             if List.length chain < 4 then s :: of_result owned s else [ s ])
           (runtime_items items))
  | _ -> []

(* The exported fields, for a unit of which only the interface is there. *)
let of_interface interface =
  numbered (List.map (fun (n, id, ty, item) -> exported id ty n item) (runtime_items interface))
